"""Every query on API keys. A key itself is handed out once and never stored, only its SHA-256."""

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from sqlalchemy import bindparam, exists, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from optserve.wire.api_keys import ANONYMOUS, SCOPES, ApiKeyInfo
from optserve.wire.limits import Limits
from optserve_server.naming import nearest, shown
from optserve_server.registry.aliases import SERVER
from optserve_server.registry.errors import ApiKeyExists, ApiKeyInvalid, ApiKeyNotFound
from optserve_server.registry.models import NAME_LENGTH, ApiKey, Timestamp, now
from optserve_server.registry.references import NEWEST_NUMBER

KEY_PREFIX = "optserve_"
"""How every key begins, so that one in the wrong place is recognised, by people and by scanners for secrets."""

LONGEST_DAYS = 36_500.0
LARGEST_LIMIT = 2**53

_RANDOM_BYTES = 24
_SHOWN = len(KEY_PREFIX) + 6  # characters of a key that are kept, to tell it from others


def digest(key: str) -> str:
    """What is kept of a key. It is looked up by this, so that no comparison's time tells how near a guess came."""
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(
    db_session: Session,
    name: str,
    scope: str,
    *,
    expires_in_days: float | None = None,
    limits: Limits | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; the second of the two is the key itself, which cannot be had again.

    Raises:
        ApiKeyInvalid: a name, a scope, a time or a limit that no key can have.
        ApiKeyExists: an unrevoked key has this name.
    """
    _require_name(name)
    if scope not in SCOPES:
        raise _invalid("scope", f"There is no scope {shown(scope)}{nearest(scope, SCOPES)}; write client or admin.")
    created_at = now()
    expires_at = None if expires_in_days is None else created_at + _lifetime(expires_in_days)
    key = KEY_PREFIX + secrets.token_hex(_RANDOM_BYTES)
    row = ApiKey(
        name=name,
        scope=scope,
        sha256=digest(key),
        prefix=key[:_SHOWN],
        created_at=created_at,
        expires_at=expires_at,
        limits=None if limits is None else _own_limits(limits),
    )
    try:
        with db_session.begin_nested():
            db_session.add(row)
    except IntegrityError as error:
        raise ApiKeyExists(name) from error
    return row, key


def describe(key: ApiKey) -> ApiKeyInfo:
    """A key as JSON tells of it."""
    return ApiKeyInfo(
        id=key.id,
        name=key.name,
        scope=key.scope,
        prefix=key.prefix,
        created_at=key.created_at.isoformat(),
        expires_at=_moment(key.expires_at),
        last_used_at=_moment(key.last_used_at),
        revoked_at=_moment(key.revoked_at),
        limits=Limits(**key.limits or {}),
    )


def list_keys(db_session: Session, *, limit: int | None = None, after: int = 0) -> Sequence[ApiKey]:
    """Keys in the order of their making, revoked ones too: at most `limit`, beginning behind the id `after`."""
    return db_session.scalars(select(ApiKey).where(ApiKey.id > after).order_by(ApiKey.id).limit(limit)).all()


def get_key(db_session: Session, id_or_name: str) -> ApiKey:
    """The key of this id, or the unrevoked one of this name.

    Raises:
        ApiKeyNotFound: there is none; the message names what comes near.
    """
    found = _find(db_session, id_or_name)
    if found is None:
        named = db_session.execute(select(ApiKey.name, ApiKey.revoked_at).order_by(ApiKey.id)).all()
        known = [name for name, revoked_at in named if revoked_at is None]
        raise ApiKeyNotFound(id_or_name, known, was_revoked=any(name == id_or_name for name, _ in named))
    return found


def revoke_key(db_session: Session, key: ApiKey) -> None:
    """Refuse a key from now on, for ever; one that was revoked already stays as it is."""
    key.revoked_at = key.revoked_at or now()
    db_session.flush()


def has_keys(db_session: Session) -> bool:
    """Whether there is an unrevoked key. An expired one counts: that time passes opens no server."""
    return db_session.scalar(select(exists().where(ApiKey.revoked_at.is_(None)))) is True


def write_last_uses(db_session: Session, uses: Mapping[int, datetime]) -> None:
    """Write down when keys were last used, by their ids; a later moment that another server wrote stays."""
    statement = (
        update(ApiKey)
        .where(
            ApiKey.id == bindparam("key_id"),
            or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < bindparam("used_at", type_=Timestamp())),
        )
        .values(last_used_at=bindparam("used_at", type_=Timestamp()))
    )
    db_session.connection().execute(statement, [{"key_id": key, "used_at": at} for key, at in sorted(uses.items())])


def _find(db_session: Session, id_or_name: str) -> ApiKey | None:
    if id_or_name.isdecimal():
        number = int(id_or_name) if len(id_or_name) <= len(str(NEWEST_NUMBER)) else 0
        return db_session.get(ApiKey, number) if number <= NEWEST_NUMBER else None
    if not id_or_name.isprintable():
        return None
    return db_session.scalar(select(ApiKey).where(ApiKey.name == id_or_name, ApiKey.revoked_at.is_(None)))


def _require_name(name: str) -> None:
    if not (1 <= len(name) <= NAME_LENGTH and name.isprintable() and name == name.strip()):
        raise _invalid("name", f"A key cannot be called {shown(name)}: write 1 to {NAME_LENGTH} printable characters.")
    if name.isdecimal():
        raise _invalid("name", f"A key cannot be called {name!r}, for keys are found by number too; add a letter.")
    if name in (ANONYMOUS, SERVER):
        raise _invalid("name", f"A key cannot be called {name!r}: that is who acts without a key. Choose another name.")


def _lifetime(days: float) -> timedelta:
    if not (math.isfinite(days) and 0 < days <= LONGEST_DAYS):
        raise _invalid("expires_in_days", f"A key cannot expire in {days:g} days; write 0 < days <= {LONGEST_DAYS:g}.")
    return timedelta(days=days)


def _own_limits(limits: Limits) -> dict[str, float] | None:
    given = {name: value for name, value in asdict(limits).items() if value is not None}
    for name, value in given.items():
        if not 0 <= value <= LARGEST_LIMIT or (name == "requests_per_second" and value <= 0):
            least = "above 0" if name == "requests_per_second" else "at least 0"
            raise _invalid(f"limits/{name}", f"{name} cannot be {value:g}; write a number {least}, at most 2^53.")
    return given or None


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _invalid(member: str, detail: str) -> ApiKeyInvalid:
    return ApiKeyInvalid(detail, errors=[{"pointer": f"#/{member}", "detail": detail}])
