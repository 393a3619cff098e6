"""The log: lines, their sentences, and the redaction of secrets."""
