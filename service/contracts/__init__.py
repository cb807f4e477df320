"""What two deployables must agree on: ids, job specs, manifests, object keys, worker and replica messages, the store.

Imports only the standard library, pydantic and boto3, so that the trainer's agent and the replica's plugin stay light.
"""
