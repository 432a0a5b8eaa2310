"""The judge: NVILA verifier, verdicts and the knockout bracket."""
