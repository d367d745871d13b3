"""`kwise rl-path`: print the path of the file that an RL library takes."""

import argparse
from pathlib import Path

from kwise.errors import ConfigError

# The file in rl/files/ of each library that takes a file.
FILES = {"ms-swift": "kwise_ms_swift.py", "openrlhf": "kwise_openrlhf.py"}

# The line of configuration of each library that takes no file. docs/rl.md explains each line.
WITHOUT_FILE = {
    "areal": 'reward_fn="kwise.rl.areal.reward"',
    "llama-factory": "reward_model_type: api, reward_model: http://HOST:PORT/v1/score/evaluation",
    "prime-rl": 'kwise = { fn = "kwise.rl.verifiers:reward" }',
    "skyrl": 'skyrl_gym.register(id="kwise", entry_point="kwise.rl.skyrl:RewardEnv")',
    "slime": "--custom-rm-path kwise.rl.slime.reward --group-rm",
    "trl": 'reward_funcs=kwise.rl.trl.RewardFunction("HOST:PORT")',
    "verifiers": 'kwise = { fn = "kwise.rl.verifiers:reward" }',
    "verl": "reward.reward_manager.name=kwise",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "library",
        metavar="LIBRARY",
        choices=sorted(FILES | WITHOUT_FILE),
        help=f"the library that takes a file: {' or '.join(sorted(FILES))}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the path and return the exit code.

    Raises:
        ConfigError: the library takes no file. The error has the line to write instead.
    """
    library = arguments.library
    if line := WITHOUT_FILE.get(library):
        raise ConfigError(f"LIBRARY {library}: it needs no file; write {line} (docs/rl.md)")
    print(Path(__file__).parent / "files" / FILES[library])
    return 0
