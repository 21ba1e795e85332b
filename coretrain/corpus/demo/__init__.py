"""A small crawl that every machine can make: real text, real damage, and known answers."""
