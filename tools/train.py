"""Train any model of this project: classes, masks or text."""
import argparse
import errno
import os
import sys
import time


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv (list[str], optional): Defaults to ``sys.argv``.

    Returns:
        argparse.Namespace: The options.
    """
    from fma_vision.engine.arguments import (add_check_data,
                                             add_config_options, add_device)
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: work_dir of the '
        'config, else work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint with its optimizer and iteration; '
        'without a value from the latest one in the work folder')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: optim_wrapper.dtype of the config, else fp16 '
        'on a GPU; bfloat16 on the CPU')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by total batch / '
        'auto_scale_lr.base_batch_size of the config')
    parser.add_argument(
        '--no-validate',
        action='store_true',
        help='do not evaluate during training')
    parser.add_argument(
        '--time-limit',
        type=float,
        metavar='MINUTES',
        help='stop after so long, with a checkpoint for --resume')
    add_check_data(parser)
    add_device(parser)
    add_config_options(
        parser,
        ', e.g. train_cfg.max_iters=100 train_dataloader.batch_size=4; '
        'lists as key="[a,b]"')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def enable_auto_scale_lr(cfg) -> None:
    """Scale the learning rate to the real total batch size.

    Args:
        cfg (Config): Changed in place.

    Raises:
        UserError: The config does not say what batch its rate is for.
    """
    from fma_vision.engine import UserError
    setting = cfg.get('auto_scale_lr')
    if not setting or not setting.get('base_batch_size'):
        raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size '
                        'in the config')
    setting.enable = True


def set_time_limit(cfg, deadline: float) -> None:
    """Let the training stop in time.

    Args:
        cfg (Config): Changed in place.
        deadline (float): Seconds since the epoch.
    """
    from fma_vision.engine import hooks  # noqa: F401  registers the hook
    cfg.custom_hooks = [
        *(cfg.get('custom_hooks') or []),
        dict(type='fma_vision.TimeLimitHook', deadline=deadline)
    ]


def set_resume(cfg, checkpoint: str) -> None:
    """Let the training go on from a checkpoint, with its seed.

    Args:
        cfg (Config): Changed in place.
        checkpoint (str): A file, or 'auto' for the latest of the work folder.

    Raises:
        UserError: It cannot be read.
    """
    from fma_vision.engine import latest_checkpoint, read_checkpoint
    if checkpoint == 'auto':
        checkpoint = latest_checkpoint(cfg.work_dir)
    # None lets the runner say that there is nothing to go on from.
    cfg.resume, cfg.load_from = True, checkpoint and str(checkpoint)
    if checkpoint is None or '://' in cfg.load_from:
        return
    # The runner reads it again, but after the order of the data is set.
    seed = (read_checkpoint(cfg.load_from).get('meta') or {}).get('seed')
    if seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}


def train_to_the_end(runner) -> None:
    """Train; where a full disk ends it, say what is left.

    Args:
        runner (mmengine.runner.Runner): Has not run yet.

    Raises:
        UserError: The disk is full.
    """
    from fma_vision.engine import UserError, latest_checkpoint
    try:
        runner.train()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        last = latest_checkpoint(runner.work_dir)
        rest = f'the last good checkpoint is {last}' if last else \
            'there is no checkpoint yet'
        raise UserError(f'nothing more can be saved in {runner.work_dir} '
                        f'({error.strerror}); {rest}: make room, then go on '
                        'with --resume') from error


def train(args: argparse.Namespace):
    """Build the runner of the options and train.

    Args:
        args (argparse.Namespace): From :func:`parse_args`.

    Returns:
        mmengine.runner.Runner: After the last iteration.
    """
    from fma_vision.engine import (UserError, build_runner, check_data,
                                   drop_validation, load_config, prepare,
                                   select_device, set_work_dir)
    from fma_vision.engine.labels import explaining_labels
    started = time.time()
    select_device(args.device)
    cfg = load_config(args.config, args.cfg_options, args.base)
    set_work_dir(cfg, args.config, args.work_dir, args.base)
    if cfg.get('train_dataloader') is None or cfg.get('train_cfg') is None:
        raise UserError(f'{args.config} has no train_dataloader or train_cfg')
    resume = args.resume or cfg.get('resume') and (cfg.get('load_from')
                                                   or 'auto')
    if resume:
        set_resume(cfg, resume)
    if cfg.get('load_from') and '://' not in cfg.load_from and \
            not os.path.isfile(cfg.load_from):
        raise UserError(f'no checkpoint file {cfg.load_from}')
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.no_validate:
        drop_validation(cfg)
    if args.time_limit is not None:
        if args.launcher != 'none':
            # Processes that stop at different steps would wait for ever.
            raise UserError('--time-limit is for a single process, got '
                            f'--launcher {args.launcher}')
        set_time_limit(cfg, started + 60 * args.time_limit)
    loaders = ('train_dataloader', 'val_dataloader')
    prepare(cfg, loaders, launcher=args.launcher, amp=args.amp)
    runner = build_runner(cfg)
    check_data(runner, 'train', samples=args.check_data)
    with explaining_labels():
        train_to_the_end(runner)
    return runner


if __name__ == '__main__':
    # So that a checkout works without installing it.
    sys.path.insert(
        0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from fma_vision.engine import run_tool
    run_tool(lambda: train(parse_args()))
