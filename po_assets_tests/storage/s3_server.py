"""A real S3-compatible server on loopback (moto's), for tests of object storage; no network, nothing kept."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import fsspec
from upath import UPath


@contextmanager
def s3_server() -> Iterator[str]:
    """Start the server, point the standard `AWS_*` variables at it, and give the URL of a fresh bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    bucket = f"po-{uuid.uuid4().hex[:12]}"
    try:
        with mock.patch.dict(os.environ, variables):
            # Clients are kept per process and settings; one of an earlier server would look for it in vain.
            fsspec.filesystem("s3").clear_instance_cache()
            UPath(f"s3://{bucket}").mkdir()
            yield f"s3://{bucket}"
    finally:
        server.stop()
