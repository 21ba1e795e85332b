"""Data engineering: raw pages in, documents out, and the reasons beside them."""
