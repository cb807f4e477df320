"""The embedded stack: a real PostgreSQL, a real S3 endpoint, the service, a trainer and a replica under one supervisor."""
