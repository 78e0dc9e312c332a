"""Print the whole config that a file and its bases make."""
import argparse
import os
import sys


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv (list[str], optional): Defaults to ``sys.argv``.

    Returns:
        argparse.Namespace: The options.
    """
    from fma_vision.engine.arguments import add_config_options
    parser = argparse.ArgumentParser(description='Print the whole config')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--save-path', help='also write it: FILE.py, FILE.json or FILE.yml')
    add_config_options(parser)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    from fma_vision.engine import UserError, load_config
    cfg = load_config(args.config, args.cfg_options, args.base)
    print(cfg.pretty_text)
    if args.save_path:
        if os.path.splitext(args.save_path)[1] not in ('.py', '.json', '.yml'):
            raise UserError(f'--save-path {args.save_path}: allowed are .py, '
                            '.json and .yml')
        os.makedirs(os.path.dirname(args.save_path) or '.', exist_ok=True)
        cfg.dump(args.save_path)


if __name__ == '__main__':
    # So that a checkout works without installing it.
    sys.path.insert(
        0, os.path.abspath(os.path.join(os.path.dirname(__file__), '../..')))
    from fma_vision.engine import run_tool
    run_tool(main)
