"""Load a causal language model and name its compressible layers. Imports torch only when something is loaded."""
