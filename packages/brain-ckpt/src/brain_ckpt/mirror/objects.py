"""The few operations on an object store that a mirror needs, with errors without credentials.

The package obstore does the talking: it serves S3, GCS and Azure with one interface, its "create"
puts an object only if there is none of its key, and it releases the GIL.  It does not retry here;
see `brain_ckpt.mirror.retries`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from brain_ckpt.errors import CheckpointMirrorError
from brain_ckpt.mirror.url import check_url, shown_url

if TYPE_CHECKING:
    from collections.abc import Sequence

# Between two bytes of an answer, or for all of a small one.
_REQUEST_TIMEOUT = "120s"
_CONNECT_TIMEOUT = "10s"
_DELETE_AT_ONCE = 1000
_ANSWER_CHUNK_BYTES = 2**20


class ObjectInfo(NamedTuple):
    """An object: its key, size in bytes, entity tag, and time in seconds since 1970."""

    key: str
    size: int
    etag: str
    modified_s: float


class UnavailableError(CheckpointMirrorError):
    """A request failed for a reason that can pass, such as a lost connection."""


class RefusedError(CheckpointMirrorError):
    """The store refuses the credentials, or does not have the bucket."""


class MissingObjectError(CheckpointMirrorError):
    """There is no object of this key."""


class ObjectStore:
    """The objects below a URL.

    Parameters
    ----------
    url : str
        Such as "s3://bucket/runs/7".  Credentials, region and endpoint come from the environment,
        as obstore takes them.

    Raises
    ------
    ValueError
        If the URL is not that of an object store.
    ImportError
        If obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = check_url(url)
        self.shown = shown_url(self.url)
        self._store = _open(self.url, self.shown)

    def create(self, key: str, data: bytes | memoryview) -> str | None:
        """Put a new object; return its entity tag, or None if there is one of this key."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            return _etag(obstore.put(self._store, key, data, mode="create", use_multipart=False))
        except AlreadyExistsError:
            return None
        except Exception as error:  # noqa: BLE001 - its text can hold credentials
            self._fail("write", key, error)

    def replace(self, key: str, data: bytes) -> None:
        """Put an object, over any of this key."""
        import obstore

        try:
            obstore.put(self._store, key, data, mode="overwrite", use_multipart=False)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail("write", key, error)

    def read(self, key: str) -> bytearray:
        """Return the content of an object, of which there is one copy in memory.

        Raises
        ------
        MissingObjectError
            If there is none.
        """
        import obstore

        try:
            answer = obstore.get(self._store, key)
            content, size = bytearray(answer.meta["size"]), 0
            for chunk in answer.stream(min_chunk_size=_ANSWER_CHUNK_BYTES):
                content[size : size + len(chunk)] = chunk
                size += len(chunk)
            del content[size:]  # cut off
        except Exception as error:  # noqa: BLE001 - as above
            self._fail("read", key, error)
        return content

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Return the objects whose keys begin with a prefix, which ends at a slash, sorted."""
        import obstore

        try:
            found = [
                ObjectInfo(
                    one["path"],
                    one["size"],
                    (one["e_tag"] or "").strip('"'),
                    one["last_modified"].timestamp(),
                )
                for page in obstore.list(self._store, prefix)
                for one in page
            ]
        except Exception as error:  # noqa: BLE001 - as above
            self._fail("list", prefix, error)
        return sorted(found)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that do not exist are skipped."""
        import obstore

        for start in range(0, len(keys), _DELETE_AT_ONCE):
            part = list(keys[start : start + _DELETE_AT_ONCE])
            try:
                obstore.delete(self._store, part)
            except FileNotFoundError:
                self._delete_each(part)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail("delete", part[0], error)

    def _delete_each(self, keys: Sequence[str]) -> None:
        # A store on disk reports a missing object; S3 does not.
        import obstore

        for key in keys:
            try:
                obstore.delete(self._store, [key])
            except FileNotFoundError:  # noqa: PERF203 - try each of them
                continue
            except Exception as error:  # noqa: BLE001 - as above
                self._fail("delete", key, error)

    def _fail(self, operation: str, key: str, error: Exception) -> NoReturn:
        # The text of obstore's error repeats the answer, and an answer of S3 to a wrong key holds
        # the key's id and the signature: only the status and the code of the answer are shown.
        where = f"{self.shown}/{key}"
        status, code = _status(str(error))
        reason = " ".join(filter(None, (status, code))) or _KINDS.get(type(error).__name__, "")
        said = f"could not {operation} {where}: {reason or 'the connection failed'}"
        if isinstance(error, FileNotFoundError) and code not in _NO_BUCKET:
            raise MissingObjectError(f"{where} does not exist") from None
        if code in _NO_BUCKET:
            raise RefusedError(
                f"{said}; the bucket must exist: correct the mirror's URL, or make the bucket"
            ) from None
        if status in ("401", "403") or type(error).__name__ in _REFUSED:
            raise RefusedError(
                f"{said}; the credentials must be valid, and allow to list, read, write and delete "
                f"there: check the environment variables of the store (for S3, AWS_ACCESS_KEY_ID, "
                f"AWS_SECRET_ACCESS_KEY and AWS_REGION)"
            ) from None
        raise UnavailableError(
            f"{said}; check the endpoint (for S3, AWS_ENDPOINT_URL) and the network"
        ) from None


_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_REFUSED = ("PermissionDeniedError", "UnauthenticatedError")
_KINDS = {
    "PermissionDeniedError": "permission denied",
    "UnauthenticatedError": "no valid credentials",
    "NotImplementedError": "the store does not support it",
    "TimeoutError": "timed out",
}


def _open(url: str, shown: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise ImportError(
            f"mirrors such as {shown} need the package obstore, which is not installed; run "
            f"pip install 'brain-ckpt[mirror]'"
        ) from error
    if url.startswith("file:"):
        return from_url(url, mkdir=True)
    try:
        return from_url(
            url,
            client_options={
                "timeout": _REQUEST_TIMEOUT,
                "connect_timeout": _CONNECT_TIMEOUT,
                "allow_http": True,  # only if the endpoint that the user chose is one
            },
            retry_config={"max_retries": 0},
        )
    except Exception as error:  # noqa: BLE001 - its text can hold credentials
        raise RefusedError(
            f"could not open {shown}: {type(error).__name__}; check the environment variables of "
            f"the store (for S3, AWS_REGION and AWS_ENDPOINT_URL)"
        ) from None


def _etag(result: Any) -> str:
    return (result["e_tag"] or "").strip('"')


def _status(text: str) -> tuple[str, str]:
    """Return the status of an answer and the code in its XML, if an error's text has them."""
    status = re.search(r"status code: (\d{3})\b", text)
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    return status.group(1) if status else "", code.group(1) if code else ""
