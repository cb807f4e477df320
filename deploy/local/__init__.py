"""The embedded stack: a real PostgreSQL, a real S3 endpoint, a trainer, a replica; one supervisor."""
