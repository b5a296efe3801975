"""What is published: how it is built and checked, and what each package brings."""
