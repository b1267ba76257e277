"""Certificates for the TLS listener: a valid one and the three kinds of bad ones that clients must refuse."""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

TlsMode = Literal["ca", "self-signed", "expired", "wrong-host"]
TLS_MODES: tuple[str, ...] = get_args(TlsMode)
LOCAL = ("localhost", "127.0.0.1", "::1")

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificates:
    """A directory of PEM files: `authority.pem`, and for each mode `{mode}.pem` with key and chain."""

    directory: Path

    @classmethod
    def create(cls, names: Sequence[str] = LOCAL) -> Certificates:
        """Makes a CA and all certificates, for `names` where they are right, in a new temporary directory.

        ImportError without the `cryptography` package.
        """
        directory = Path(tempfile.mkdtemp(prefix="fetchbox-origin-"))
        _write_all(directory, names)
        return cls(directory)

    @property
    def ca_file(self) -> Path:
        """The CA that signed all but the self-signed one."""
        return self.directory / "authority.pem"

    def pem(self, mode: TlsMode) -> Path:
        """Key and certificate of a mode in one file."""
        return self.directory / f"{mode}.pem"

    def remove(self) -> None:
        """Deletes the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)


def server_context(certificates: Certificates, mode: TlsMode) -> ssl.SSLContext:
    """A context that presents the certificate of `mode`, offering HTTP/1.1 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.pem(mode))
    context.set_alpn_protocols(["http/1.1"])
    return context


def _write_all(directory: Path, names: Sequence[str]) -> None:
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ImportError("the origin's TLS listener needs the package `cryptography`: pip install cryptography") from error
    from cryptography.hazmat.primitives import serialization

    now = dt.datetime.now(dt.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("FetchBox test CA", ca_key, None, names=[], start=now - _DAY, end=now + 365 * _DAY, authority=True)
    (directory / "authority.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    plans: dict[TlsMode, tuple[Sequence[str], dt.datetime, dt.datetime, bool]] = {
        "ca": (names, now - _DAY, now + 90 * _DAY, True),
        "self-signed": (names, now - _DAY, now + 90 * _DAY, False),
        "expired": (names, now - 30 * _DAY, now - _DAY, True),
        "wrong-host": (["elsewhere.example"], now - _DAY, now + 90 * _DAY, True),
    }
    for mode, (named, start, end, signed) in plans.items():
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = (ca, ca_key) if signed else None
        certificate = _certificate(f"FetchBox origin {mode}", key, issuer, names=named, start=start, end=end)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption_algorithm=serialization.NoEncryption()
        )
        path = directory / f"{mode}.pem"
        path.touch(mode=0o600)
        path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    *,
    names: Sequence[str],
    start: dt.datetime,
    end: dt.datetime,
    authority: bool = False,
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    signer = issuer[1] if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
