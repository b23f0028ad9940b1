"""Learned against tuned hand-designed optimizers on unseen tasks."""

import csv
import os
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.common import baselines, plots
from experiments.common.run import is_writer, write_json
from l2o_jax.evaluation import learning_curves, tune_learning_rate


class Panel(NamedTuple):
  """A problem on which optimizers are compared.

  Attributes:
    title: of the panel, and its name in the table.
    tuning: optimizee on which the baselines' learning rates are tuned.
    test: optimizee of the comparison.
    num_steps: T.
  """

  title: str
  tuning: object
  test: object
  num_steps: int


def compare(
  workdir, learned, theta, panels, grids, *, batch_size=None, extra=None
):
  """Learned against tuned hand-designed optimizers on unseen tasks.

  Writes curves.csv, summary.json and learning_curves.png; prints the table.

  Args:
    workdir: the run directory.
    learned: the learned optimizer.
    theta: its weights.
    panels: list of Panel.
    grids: {baseline: learning rates}.
    batch_size: tasks at a time; all by default.
    extra: {name: value} to go into summary.json too.

  Returns:
    summary: {panel: {optimizer: {learning_rate, final, sum, ...}}}; empty in
    processes other than the one that writes.
  """
  if not is_writer():
    return {}
  args = flags.FLAGS
  key_tuning, key_test = jax.random.split(jax.random.key(2_000_003))
  tuning_keys = jax.random.split(key_tuning, args.num_tuning)
  test_keys = jax.random.split(key_test, args.num_test)
  summary, all_curves = {}, {}
  for panel in panels:

    @jax.jit
    def learned_curves(theta, test, keys, panel=panel):
      return learning_curves(
        test, learned.transform(theta), keys, panel.num_steps, batch_size
      )

    curves = {'LSTM': np.asarray(learned_curves(theta, panel.test, test_keys))}
    rates = {'LSTM': None}
    for name, make_opt in baselines.BASELINES.items():
      rates[name], _ = tune_learning_rate(
        panel.tuning,
        make_opt,
        grids[name],
        tuning_keys,
        panel.num_steps,
        batch_size,
      )

      @jax.jit
      def hand_made_curves(test, rate, keys, make_opt=make_opt, panel=panel):
        return learning_curves(
          test, make_opt(rate), keys, panel.num_steps, batch_size
        )

      curves[name] = np.asarray(
        hand_made_curves(panel.test, rates[name], test_keys)
      )
    all_curves[panel.title] = curves
    summary[panel.title] = {
      name: {'learning_rate': rates[name], **_statistics(losses)}
      for name, losses in curves.items()
    }
    print(table(panel.title, summary[panel.title]), flush=True)
  _write_curves(workdir / 'curves.csv', all_curves)
  plots.learning_curves(workdir / 'learning_curves.png', all_curves)
  write_json(
    workdir / 'summary.json',
    {'panels': summary, 'num_test': args.num_test, **(extra or {})},
  )
  print(f'\nwritten: {workdir}/learning_curves.png summary.json curves.csv')
  return summary


def _statistics(losses):
  """Of losses [B, T + 1], over the B tasks."""
  final = losses[:, -1].astype(np.float64)
  with np.errstate(invalid='ignore'):  # what diverged is inf or nan
    low, median, high = np.quantile(final, [0.25, 0.5, 0.75])
    return {
      'final_mean': final.mean(),
      'final_stderr': final.std() / np.sqrt(len(final)),
      'final_median': median,
      'final_quartiles': [low, high],
      'sum_mean': losses.astype(np.float64).sum(1).mean(),
    }


def table(title, rows) -> str:
  """One panel as text, best final loss first."""
  lines = [
    f'\n{title}',
    f'{"optimizer":<10}{"rate":>9}{"final mean":>12}'
    f'{"± s.e.":>10}{"median":>10}{"quartiles":>22}{"sum":>10}',
  ]
  for name, row in sorted(rows.items(), key=lambda kv: kv[1]['final_mean']):
    rate = '' if row['learning_rate'] is None else f'{row["learning_rate"]:.3g}'
    quartiles = '{:.4g} … {:.4g}'.format(*row['final_quartiles'])
    lines.append(
      f'{name:<10}{rate:>9}{row["final_mean"]:>12.4g}'
      f'{row["final_stderr"]:>10.2g}{row["final_median"]:>10.4g}'
      f'{quartiles:>22}{row["sum_mean"]:>10.4g}'
    )
  return '\n'.join(lines)


def _write_curves(path, all_curves):
  temporary = f'{path}.tmp'
  with open(temporary, 'w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(
      [
        'panel',
        'optimizer',
        'step',
        'mean',
        'quartile_1',
        'median',
        'quartile_3',
      ]
    )
    for title, curves in all_curves.items():
      for name, losses in curves.items():
        with np.errstate(invalid='ignore'):
          quartiles = np.quantile(losses, [0.25, 0.5, 0.75], axis=0)
        for step, (mean, *rest) in enumerate(zip(losses.mean(0), *quartiles)):
          writer.writerow(
            [title, name, step, f'{mean:.6g}', *(f'{v:.6g}' for v in rest)]
          )
  os.replace(temporary, path)
