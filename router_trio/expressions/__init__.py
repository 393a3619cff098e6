"""CEL, the Common Expression Language (https://cel.dev), for routing by content.

An expression is checked and compiled to closures once (`compile_expression`), and evaluated for each message on its
`Facts`. Pure and synchronous; no text is ever executed as Python.

- `language/`: from text to a checked tree; `signatures` is the table of all operators and functions
- `compiler`: from the tree to closures, with the implementations in `operators`, `macros`, `access` and `functions/`
- `values`: the Python classes of CEL's values, their equality, and the budget of a message
- `message`, `headers`, `body`: lazy decoding of the parts of a message
- `output`: from a value to a payload or a header
"""
