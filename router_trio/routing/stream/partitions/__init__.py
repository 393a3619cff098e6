"""A stream that several processes share by partitions: which process leads which partition, and what follows."""
