"""What a compiled program's texts say: its collectives, its heap, and the least time that it takes."""
