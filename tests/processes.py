"A small training run, as a script that the tests start, alone or in several processes, and hurt."
import argparse, json, os, signal, sys, time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from consistency_nb.checkpoints import make_net
from consistency_nb.data import Images
from consistency_nb.distances import l2
from consistency_nb.launch import fit_in
from consistency_nb.place import Options, Parts
from consistency_nb.presets import override, preset
from consistency_nb.processes import follow_parent
from consistency_nb.train import Run

ROOT = Path(__file__).resolve().parent.parent

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.dropout = 0.
    def forward(self, x, c, y=None):
        h = torch.tanh(self.a(x) + c[:, None, None, None])
        return self.c(nn.functional.dropout(torch.tanh(self.b(h)), self.dropout, self.training))

DATA = Images(torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), 'tiny')

def tiny(method='ct', **changes):
    "A preset for `Net`; 'ct' with a target, others as they come."
    own = dict(ct=dict(mu=0.9), edm=dict(mu=0.), pd=dict(mu=0., growth=(), s0=4))[method]
    return override(preset('avatars32_ct'), **{**dict(method=method, image_size=8, draw='uniform', batch=8, iterations=12, lr=1e-3, ema=0.9, sigma_data=0.58, net=dict(cls='UNet')), **own, **changes})

def train(p, out, device='cpu', width=8, net=None, log_every=15., save_every=120., on_log=None, bar=None, **options):
    "`net`: settings of one of the package's networks, stirred, since its last layers begin at zero."
    torch.manual_seed(0)
    made = make_net(net) if net else Net(width)
    for v in made.parameters() if net else (): nn.init.normal_(v, std=0.05)
    return fit_in(out, p, Parts(made, DATA, distance=l2), Options(device=device, **options), on_log, log_every, save_every, bar)

def survived(fault, moment, said, finished, resumed):
    """What a fault test has seen, for the table on the page about the training loop; kept if FAULTS names a file.
    `said`: the library's own words; `finished`: the last step that was made; `resumed`: the step of the checkpoint that is left, or None."""
    if not os.environ.get('FAULTS'): return
    path, test = Path(os.environ['FAULTS']), os.environ['PYTEST_CURRENT_TEST'].split('::')[1].split(' ')[0]
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows.setdefault(test, []).append(dict(fault=fault, moment=moment, said=' '.join(said.split()), finished=finished, resumed=resumed))
    path.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + '\n')

def line_with(text, words):
    "The line of an output that holds some words."
    return next(s for s in text.splitlines() if words in s)

def last_step(out):
    "The last step of which metrics.jsonl holds a whole line."
    return max(json.loads(s)['step'] for s in (Path(out)/'metrics.jsonl').read_text().splitlines() if s.endswith('}'))

def environment(**more): return {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **more}

def main():
    a = argparse.ArgumentParser()
    for n, t, d in (('out', str, None), ('preset', str, '{}'), ('accumulate', int, 1), ('shard', int, 0), ('compile', int, 0), ('net', json.loads, None), ('width', int, 8), ('save_every', float, 0.), ('die', str, ''), ('pause', float, 0.)): a.add_argument(f'--{n}', type=t, default=d)
    a = a.parse_args()
    torch.set_num_threads(1)
    follow_parent()
    rank, p, seen = os.environ.get('RANK', '0'), tiny(**json.loads(a.preset)), []
    who, at, how = a.die.split(':') if a.die else ('', '0', '')   # such as 1:5:kill, process 1 in step 5
    step = Run.step
    def hurt(run):
        if rank == who and run.k == int(at):
            if how == 'kill': os.kill(os.getpid(), signal.SIGKILL)
            if how == 'raise': raise RuntimeError('the disk of this machine is gone')
            if how == 'nan':
                batch = run.data.batch
                run.data.batch = lambda *args: batch(*args) * float('nan')
        time.sleep(a.pause)
        loss, t = step(run)
        seen.append(run.place.collect(loss).mean().item())
        return loss, t
    Run.step = hurt
    run = train(p, a.out, width=a.width, net=a.net, accumulate=a.accumulate, shard=bool(a.shard), compile=bool(a.compile), log_every=0.2, save_every=a.save_every)
    if rank == '0': (Path(a.out)/'losses.json').write_text(json.dumps(seen))
    if dist.is_initialized(): dist.destroy_process_group()

if __name__ == '__main__': main()
