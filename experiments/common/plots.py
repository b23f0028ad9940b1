"""Figures of learning curves."""

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

_DASHES = ('--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1)))


def learning_curves(path, panels, learned=('LSTM',), periods=None):
  """Mean loss against step with a quartile band, one panel per problem.

  Args:
    path: of the PNG.
    panels: {title: {optimizer: losses [B, T + 1]}}.
    learned: names drawn solid; the others are dashed.
    periods: {title: steps between two losses}; 1 by default.
  """
  columns = min(len(panels), 3)
  rows = -(-len(panels) // columns)
  figure, axes = plt.subplots(
    rows,
    columns,
    figsize=(5.2 * columns, 4.0 * rows),
    squeeze=False,
    layout='constrained',
  )
  for axis in axes.flat[len(panels) :]:
    axis.axis('off')
  for axis, (title, curves) in zip(axes.flat, panels.items()):
    tops, bottoms = [], []
    for i, (name, losses) in enumerate(curves.items()):
      steps = np.arange(losses.shape[1]) * (periods or {}).get(title, 1)
      mean = np.mean(losses, axis=0)
      with np.errstate(invalid='ignore'):  # what diverged is inf or nan
        low, high = np.quantile(losses, [0.25, 0.75], axis=0)
      if name in learned:
        style = {'ls': '-', 'lw': 2.2, 'zorder': 3, 'color': f'C{i}'}
      else:
        style = {
          'ls': _DASHES[(i - 1) % len(_DASHES)],
          'lw': 1.5,
          'color': f'C{i % 10}',
        }
      axis.plot(steps, mean, label=name, **style)
      axis.fill_between(
        steps, low, high, color=style['color'], alpha=0.12, lw=0
      )
      tops.append(mean[0])
      bottoms.append(np.nanmin([np.nanmin(mean), np.nanmin(low)]))
    axis.set_yscale('log')
    if np.isfinite(tops).all() and np.isfinite(bottoms).all():
      axis.set_ylim(max(min(bottoms) * 0.8, 1e-6), max(tops) * 3)
    axis.set_title(title)
    axis.set_xlabel('step')
    axis.set_ylabel('loss (mean; band: quartiles)')
    axis.grid(alpha=0.3, which='both', lw=0.4)
    axis.legend(fontsize=8)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def margins(path, margins, losses, learned, horizon):
  """Mean margins of victory against step, and losses on two functions.

  Args:
    path: of the PNG.
    margins: {competitors: [T + 1]}.
    losses: {optimizer: [B, T + 1]}.
    learned: the one drawn solid.
    horizon: of meta-training; a vertical line.
  """
  figure, axes = plt.subplots(1, 3, figsize=(15.6, 4.2), layout='constrained')
  for i, (name, margin) in enumerate(margins.items()):
    axes[0].plot(
      margin,
      label=name,
      ls='--' if i else '-',
      lw=1.3 if i else 2.2,
      color=f'C{i}',
    )
  first = np.abs(next(iter(margins.values()))[2:])
  axes[0].set_ylim(-2 * first.max(), 5 * first.max())
  axes[0].set_ylabel('mean margin of victory over')
  axes[0].axhline(0, color='k', lw=0.8)
  for function, axis in enumerate(axes[1:]):
    curves = {name: x[min(function, len(x) - 1)] for name, x in losses.items()}
    for i, (name, curve) in enumerate(curves.items()):
      axis.plot(
        curve,
        label=name,
        ls='-' if name == learned else '--',
        lw=2.2 if name == learned else 1.3,
        color=f'C{i}',
      )
    lowest = min(np.nanmin(curve) for curve in curves.values())
    axis.set_yscale('log')
    axis.set_ylim(0.9 * lowest, 2 * curves[learned][0])
    axis.set_ylabel(f'loss, test function {function}')
  for axis in axes:
    axis.axvline(horizon, color='k', lw=0.6, ls=':')
    axis.set_xlabel('step')
    axis.grid(alpha=0.3, lw=0.4)
    axis.legend(fontsize=7)
  figure.savefig(path, dpi=120)
  plt.close(figure)
