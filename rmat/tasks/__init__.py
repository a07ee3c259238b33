"""Tasks whose tokens are drawn, with known answers: they measure what a memory keeps."""
