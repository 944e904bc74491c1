"""What the reference says of every pair, asked once and read from files in its place."""
