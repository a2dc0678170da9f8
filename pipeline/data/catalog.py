"""The data sets this laboratory knows: one entry each. Imports nothing heavy."""
