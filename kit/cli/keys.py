"""`n4090-kit keys`: the keys that sign results."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.Path(dir_okay=False, path_type=Path)
WORK = click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="N4090_WORK",
    default=Path(),
    help="Work folder [.].",
)


@click.group()
def keys() -> None:
    """Make, show and revoke signing keys."""


@keys.command("make")
@WORK
@click.option("--out", type=FILE, help="Where to; default WORK/keys.")
@click.option("--comment", default="n4090-kit", help="Comment in the public key.")
def make(work: Path, out: Path | None, comment: str) -> None:
    """Make an Ed25519 key that signs without a passphrase."""
    from kit.errors import PrerequisiteError
    from kit.trust.keys import MADE_NAME, load_signer, make_key

    path = out or work / "keys" / MADE_NAME
    if not make_key(path, comment):
        raise PrerequisiteError(
            f"`{path.name}` is there already", hint="keys are never overwritten; choose --out"
        )
    signer = load_signer(path)
    click.echo(f"made {path} (mode 0600) and {path.name}.pub", err=True)
    click.echo(signer.public_key)
    click.echo(
        "It belongs to nobody yet: add it to your account as a signing key, or give `run --key` "
        "a key that is already there.",
        err=True,
    )


@keys.command("show")
@WORK
@click.option("--key", type=FILE, help="A key file, private or .pub; default: that of WORK/keys.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(work: Path, key: Path | None, as_json: bool) -> None:
    """Show the key that would sign, its fingerprint, and whether it is revoked."""
    from kit.trust.keys import MADE_NAME, REVOKED_NAME, load_signer, revoked_keys

    signer = load_signer(key or work / "keys" / MADE_NAME)
    revoked = signer.public_key in revoked_keys(work / "keys" / REVOKED_NAME)
    if as_json:
        facts = {
            "public_key": signer.public_key,
            "fingerprint": signer.fingerprint,
            "origin": signer.origin if key else "made",
            "revoked": revoked,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"{signer.fingerprint}{' (REVOKED)' if revoked else ''}")
    click.echo(signer.public_key)


@keys.command("revoke")
@WORK
@click.option("--key", type=FILE, help="A key file, private or .pub; default: that of WORK/keys.")
@click.option("--reason", default="", help="Why, for readers of the list.")
@click.confirmation_option(prompt="Results signed with this key will be refused. Revoke it?")
def revoke(work: Path, key: Path | None, reason: str) -> None:
    """Add a key to WORK/keys/revoked_keys, a list that `ssh-keygen -Y verify -r` reads."""
    from kit.trust.keys import MADE_NAME, load_signer
    from kit.trust.keys import revoke as add

    signer = load_signer(key or work / "keys" / MADE_NAME)
    path = add(work / "keys", signer.public_key, reason)
    click.echo(f"{signer.fingerprint} is in {path}; publish the list with your results", err=True)


@keys.command("identify")
@WORK
@click.option("--github", multiple=True, metavar="USER", help="A GitHub account.")
@click.option(
    "--hf", multiple=True, metavar="USER", help="A Hugging Face account (dataset n4090-keys)."
)
@click.option("--out", type=FILE, help="Where to; default WORK/keys/identities.json.")
def identify(work: Path, github: tuple[str, ...], hf: tuple[str, ...], out: Path | None) -> None:
    """Look up which keys accounts show in public, and keep that with the date.

    With network, and only when asked. Runs of this work folder then name the accounts that show
    their key; `verify --identities` takes such a file from whoever checks.
    """
    from kit.trust.identities import SNAPSHOT_NAME, Account, fetch_snapshot, merge_snapshot

    accounts = [Account("github", user) for user in github] + [Account("hf", user) for user in hf]
    if not accounts:
        raise click.UsageError("name an account with --github or --hf")
    snapshot = fetch_snapshot(accounts)
    path = out or work / "keys" / SNAPSHOT_NAME
    merge_snapshot(path, snapshot)
    for entry in snapshot["accounts"]:
        click.echo(f"{entry['service']}:{entry['user']} shows {len(entry['keys'])} keys", err=True)
    click.echo(f"kept in {path}", err=True)


@keys.command("sign")
@click.argument("result", type=click.Path(path_type=Path))
@WORK
@click.option("--key", type=FILE, help="A key file, private or .pub; default: that of WORK/keys.")
def sign(result: Path, work: Path, key: Path | None) -> None:
    """Add a signature to a result beside those it has: a witness, or the same run's other owner."""
    from kit.errors import SignatureError
    from kit.files import write_json
    from kit.trust.canonical import parse_strict
    from kit.trust.keys import MADE_NAME, load_signer
    from kit.trust.sign import sign_document

    path = result / "result.json" if result.is_dir() else result
    document = parse_strict(path.read_bytes(), name=f"`{path.name}`")
    signer = load_signer(key or work / "keys" / MADE_NAME)
    if any(entry["public_key"] == signer.public_key for entry in document.get("signatures", [])):
        raise SignatureError("this key has signed the result already", key=signer.fingerprint)
    write_json(path, sign_document(document, signer))
    click.echo(f"{path.name} is now signed by {signer.fingerprint}, too", err=True)
