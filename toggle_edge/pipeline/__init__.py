"""The composition root: the only place that knows every stage.

`loop` holds the stages of the loop, one function each; `demo` runs them all on the demo model.
"""
