"""What is logged, and how: lines, their sentences, what is left out of them."""
