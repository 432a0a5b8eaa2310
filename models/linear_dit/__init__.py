"""SANA's linear diffusion transformer: prompt context once, then one forward per step."""
