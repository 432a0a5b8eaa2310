"""The sheet: one image of all candidates of a job, ranked, with the knockout that the winner won."""
