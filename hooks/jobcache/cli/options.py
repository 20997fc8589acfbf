"""Options that several commands have, with one help text each."""

import click

from jobcache.config.settings import CONFIG

config = click.option(
    "--config", "config_file", metavar="FILE", default=CONFIG, show_default=True, help="Read the site's configuration from FILE."
)
hooks = click.option("--hooks", metavar="DIR", help="Use the compiled settings in DIR.")
node = click.option("--node", metavar="NAME", help="Name of this node in Slurm. Default: found by Slurm or by the host name.")
node_local = click.option("--node-local", is_flag=True, help="Use this node's own scratch, not the shared one.")
path = click.option("--path", metavar="TEMPLATE", help="Use the caches of `jobcache run --path TEMPLATE`.")
user = click.option("--user", metavar="NAME", help="Select this user only. Without root: always yourself.")
dry_run = click.option("--dry-run", is_flag=True, help="Print the decisions and change nothing.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
as_json_lines = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each decision.")
event_files = click.argument("files", metavar="[FILE]...", nargs=-1)
