"""`fetchbox get`: its arguments as typer reads and explains them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fetchbox.cli.download import download
from fetchbox.cli.options import ConfigOption, JsonOption, config_path

app = typer.Typer(add_completion=False)


@app.command()
def get(
    context: typer.Context,
    urls: Annotated[list[str] | None, typer.Argument(metavar="[URL]…", help="What to download.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="FILE", help="URLs from txt, JSON lines, CSV or Parquet, .gz of them, or - for stdin."),
    ] = None,
    url_col: Annotated[str | None, typer.Option("--url-col", metavar="NAME", help="The column or key that holds the URL.")] = None,
    id_col: Annotated[str | None, typer.Option("--id-col", metavar="NAME", help="The column or key that names each (default: id).")] = None,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR-or-URL", help="A directory, file://, s3://, gs:// or az://.")] = "fetched",
    concurrency: Annotated[int | None, typer.Option("--concurrency", "-j", min=1, max=100_000, help="Downloads at once.")] = None,
    as_json: JsonOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Download again what is stored already.")] = False,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Ask the origins whether what is stored has changed, and download only that.")
    ] = False,
    reuse_max_age: Annotated[
        str | None, typer.Option("--reuse-max-age", metavar="DURATION", help="With --reuse: do not even ask again within 1h, 7d, …")
    ] = None,
    reuse_file: Annotated[
        Path | None, typer.Option("--reuse-file", metavar="FILE", help="As --reuse, and where it remembers; needed for a bucket.")
    ] = None,
    allow_network: Annotated[
        list[str] | None, typer.Option("--allow-network", metavar="CIDR", help="Allow a private network; 127.0.0.0/8 for loopback.")
    ] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="Send this header.")] = None,
    user_agent: Annotated[str | None, typer.Option("--user-agent", "-A", metavar="TEXT", help="The User-Agent header.")] = None,
    proxy: Annotated[str | None, typer.Option("--proxy", "-x", metavar="URL", help="http://, https:// or socks5:// proxy.")] = None,
    transport: Annotated[
        Literal["native", "curl"] | None, typer.Option("--transport", help="curl fetches ftp, ftps and sftp too; it needs fetchbox[curl].")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", metavar="USER:PASSWORD", help="Log in to the URLs' own origins.")] = None,
    digest: Annotated[bool, typer.Option("--digest", help="With -u: HTTP digest, by curl.")] = False,
    ntlm: Annotated[bool, typer.Option("--ntlm", help="With -u: NTLM, by curl.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", "-k", help="Do not check certificates.")] = False,
    cacert: Annotated[str | None, typer.Option("--cacert", metavar="FILE", help="PEM file of further authorities.")] = None,
    max_time: Annotated[float | None, typer.Option("--max-time", min=0.001, help="Seconds for one download.")] = None,
    connect_timeout: Annotated[float | None, typer.Option("--connect-timeout", min=0.001, help="Seconds to connect.")] = None,
    retry: Annotated[int | None, typer.Option("--retry", min=0, help="Tries after the first failed.")] = None,
    limit_rate: Annotated[
        str | None, typer.Option("--limit-rate", metavar="SPEED", help="Bytes per second of all downloads together: 500k, 10M.")
    ] = None,
    max_filesize: Annotated[str | None, typer.Option("--max-filesize", metavar="SIZE", help="Give up on larger bodies: 10M, 5GiB.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for every download.")] = False,
    config: ConfigOption = None,
) -> int:
    """Download many URLs into a directory or a bucket, verified and retried, without a service.

    Names come from the URL or the id, so running the same command again goes on where it was interrupted. Exit status: 0 if all were
    stored or there already, 1 if some failed, 130 on Ctrl-C. The settings FETCHBOX__FETCH__* are honoured.
    """
    return download(
        config_path(context, config),
        urls=urls,
        inputs=inputs,
        url_col=url_col,
        id_col=id_col,
        out=out,
        concurrency=concurrency,
        as_json=as_json,
        overwrite=overwrite,
        reuse=reuse,
        reuse_max_age=reuse_max_age,
        reuse_file=reuse_file,
        allow_network=allow_network,
        header=header,
        user_agent=user_agent,
        proxy=proxy,
        transport=transport,
        user=user,
        digest=digest,
        ntlm=ntlm,
        insecure=insecure,
        cacert=cacert,
        max_time=max_time,
        connect_timeout=connect_timeout,
        retry=retry,
        limit_rate=limit_rate,
        max_filesize=max_filesize,
        quiet=quiet,
        verbose=verbose,
    )
