"""Layer blobs to tables of contents and back; bytes in, values or errors out."""
