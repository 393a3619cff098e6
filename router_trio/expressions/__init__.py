"""CEL, the Common Expression Language (https://cel.dev), for routing by content.

An expression is checked and compiled to closures once (`compile_expression`) and evaluated for each message, on its
`Facts`. Pure and synchronous; nothing below runs text as Python.

- `language/`: from text to a checked tree; `signatures` is the table of all operators and functions
- `compiler`: from the tree to closures; `operators`, `macros`, `access` carry them out
- `values`, `conversions`, `times`, `strings`, `patterns`: what the values are and do
- `message`, `headers`, `body`: what of a message is decoded, and when
- `output`: from a value to a payload or a header
"""
