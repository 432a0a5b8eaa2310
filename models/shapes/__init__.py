"""The shapes world: drawn scenes in GenEval's six categories, their prompts and an exact evaluator."""
