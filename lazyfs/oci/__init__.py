"""Names and documents of the OCI specifications; bytes in, values or errors out."""
