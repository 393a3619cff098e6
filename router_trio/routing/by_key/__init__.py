"""Routes that go key by key: of each key one message at a time, and up to `concurrency` calls of the handler."""
