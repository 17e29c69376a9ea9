"""The command `scanward`: what there is to run. Each command's code is imported when it runs, so that help is quick."""

from __future__ import annotations

import importlib
import sys
import traceback
from importlib.metadata import entry_points

import click

from gateway.errors import ConfigError, GatewayError

PLUGIN_GROUP = "scanward.commands"
"""Entry points that add commands: the demo's code belongs to a layer above the gateway."""

_COMMANDS = {
    "serve": ("gateway.cli.serving:serve", "Run the gateway."),
    "check-config": ("gateway.cli.serving:check_config", "Check a configuration, every mistake named by its key."),
    "health": ("gateway.cli.health:health", "Ask a gateway whether it is ready: for probes."),
    "screen": ("gateway.cli.screening:screen", "Have a gateway examine files or folders."),
    "quarantine": ("gateway.cli.reviewing:quarantine", "Find, show, release and confirm held scans."),
    "sign": ("gateway.cli.signatures:sign", "Add a digital signature to a DICOM file."),
    "verify": ("gateway.cli.signatures:verify", "Verify the digital signatures of DICOM files."),
    "resign": ("gateway.cli.resigning:resign", "Sign a losslessly transcoded copy of a verified DICOM file."),
    "lint": ("gateway.cli.linting:lint", "Say what will break a DICOM file's signature."),
    "diff": ("gateway.cli.linting:diff", "Say where two DICOM files differ in what a signature covers."),
    "series": ("gateway.cli.series:series", "Sign and verify the list of a series' objects."),
    "trust": ("gateway.cli.trusting:trust", "Keep revocation lists and OCSP responses up to date."),
    "policy": ("gateway.cli.policing:policy", "Try another policy on what the audit log holds."),
    "audit": ("gateway.cli.auditing:audit", "Verify, show and export the audit log."),
}
_PLUGIN_HELP = {"demo": "Start everything on this machine and show the main job end to end."}


class CannotRun(click.ClickException):
    """Usage, configuration or input that cannot be worked with: exit code 2, the sentence on stderr."""

    exit_code = 2


class _Commands(click.Group):
    """Commands by name, imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Own commands in the order of use, then those of plugins."""
        return [*_COMMANDS, *(plugin.name for plugin in entry_points(group=PLUGIN_GROUP))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name in _COMMANDS:
            module, _, name = _COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return command
        for plugin in entry_points(group=PLUGIN_GROUP, name=cmd_name):
            try:
                command = plugin.load()
            except ImportError as error:
                raise CannotRun(f"{cmd_name} is not installed: {error} (pip install 'scanward[lab]')") from error
            return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        rows = [(name, _COMMANDS[name][1] if name in _COMMANDS else _PLUGIN_HELP.get(name, ""))
                for name in self.list_commands(ctx)]  # fmt: skip
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; exit code 1 is left to those that examined something and found it wanting."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise CannotRun("\n  ".join(["the configuration cannot be served:", *error.problems])) from error
        except GatewayError as error:
            raise CannotRun(str(error)) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:
            raise CannotRun(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
        except Exception:
            traceback.print_exc()
            sys.exit(CannotRun.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="scanward")
def main() -> None:
    """Scanward: a protection gateway in front of diagnostic imaging AI.

    Exit codes: 0 all well; 1 examined and found wanting; 2 cannot run.
    """
