"""Trains policies to balance the pole of CartPole-v1 by REINFORCE, with and without a baseline.

    python examples/reinforce.py                    # five of each
    python examples/reinforce.py --env Acrobot-v1   # any environment of gymnasium with numbers in and a choice out

Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", Machine Learning
8, 1992. `learning.png` is figure 13.2 of Sutton and Barto, "Reinforcement Learning", 2nd edition, 2018, at small scale,
with the pole in the place of their corridor: the return of each episode, averaged over policies. A baseline learns what
return to expect and is subtracted from the one that came, so that an action counts as good only where it did better.
The gradient's mean stays what it was, but it varies less, and learning is faster: expect a mean return over all
episodes of about 260 of 500 with the baseline and 150 without.
"""

import argparse
from pathlib import Path

import gymnasium
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from camshaft import Engine, GradientAccumulation, OptimizerStep
from camshaft.curves import read_curves
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

KINDS = {"baseline": "with a baseline", "plain": "without"}
EPISODES = 50  # of an epoch


def main() -> None:
    options = start(option_parser())
    environment = make(options.env)

    # ------------------------------------------------------------------------------------------------ the research

    sizes = environment.observation_space.shape[0], options.width, environment.action_space.n
    agents = nn.ModuleDict({f"{kind}/{one}": Agent(*sizes) for one in range(options.agents) for kind in KINDS})

    def training_step(engine: Engine, batch: None) -> dict[str, torch.Tensor]:
        # An episode of each agent. They have no weight in common, so the gradient of their sum is each one's own.
        losses, total = [], {}
        for index, (name, agent) in enumerate(agents.items()):
            # An episode begins where its number says, so that a run that goes on has the same ones.
            seed = (10_000 * options.seed + engine.state.iteration) * len(agents) + index
            states, chosen, rewards = episode(environment, agent.policy, seed)
            returns, expected = discounted(rewards, options.discount), agent.baseline(states).squeeze(1)
            surprise = returns - expected.detach() if name.startswith("baseline") else returns
            log_chosen = -F.cross_entropy(agent.policy(states), chosen, reduction="none")
            losses.append(F.mse_loss(expected, returns) - (surprise * log_chosen).sum())
            total[name] = rewards.sum()
        return {"loss": sum(losses), **total}

    # ------------------------------------------------------------------------------------------------ the engineering

    optimizer = torch.optim.Adam(agents.parameters(), lr=options.lr)
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        GradientAccumulation(options.batch_size),
        *standard_handlers(options, agents=agents, optimizer=optimizer, log_every=1),
    )
    trainer.run(max_epochs=options.max_epochs, epoch_length=EPISODES)

    # ------------------------------------------------------------------------------------------------ what came of it

    curves = read_curves(options.run_dir)
    print()
    returns = {}
    for kind, label in KINDS.items():
        of_agents = [[value for _, value in curves[name]] for name in agents if name.startswith(kind)]
        returns[label] = torch.tensor(of_agents)  # (agents, episodes)
        mean, last = returns[label].mean(), returns[label][:, -EPISODES:].mean()
        print(f"{label:15}  {mean:6.1f} mean return, {last:6.1f} in the last {EPISODES} episodes")
    print(f"picture          {plot(returns, options.run_dir / 'learning.png', options.env)}")
    print(f"weights sha256: {weights_sha256(agents)}")


class Agent(nn.Module):
    """What to do in a state, and what return to expect from there."""

    def __init__(self, inputs: int, width: int, actions: int) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, actions))
        self.baseline = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))


def make(name: str) -> gymnasium.Env:
    try:
        environment = gymnasium.make(name, disable_env_checker=True)  # which takes longer than the environment
    except gymnasium.error.Error as error:
        raise ValueError(str(error)) from error
    seen, choice = environment.observation_space, environment.action_space
    if not isinstance(choice, gymnasium.spaces.Discrete) or len(seen.shape or ()) != 1:
        raise ValueError(f"{name} has {seen} to see and {choice} to do: take one with a row of numbers and a choice.")
    return environment


@torch.no_grad()
def episode(
    environment: gymnasium.Env, policy: nn.Module, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # states (time, inputs), chosen actions, rewards (time)
    state, _ = environment.reset(seed=seed)
    states, chosen, rewards = [], [], []
    ended = False
    while not ended:
        states.append(torch.as_tensor(state, dtype=torch.float32))
        probabilities = policy(states[-1]).softmax(0)
        chosen.append(torch.multinomial(probabilities, 1))
        state, reward, terminated, truncated, _ = environment.step(chosen[-1].item())
        rewards.append(float(reward))
        ended = terminated or truncated
    return torch.stack(states), torch.cat(chosen), torch.tensor(rewards)


def discounted(rewards: torch.Tensor, discount: float) -> torch.Tensor:
    """What follows each action, where a reward one action later counts ``discount`` times as much."""
    returns = rewards.clone()
    for time in reversed(range(len(returns) - 1)):
        returns[time] += discount * returns[time + 1]
    return returns


def plot(returns: dict[str, torch.Tensor], path: Path, environment: str) -> Path:
    """The mean over the agents, smoothed over ten episodes, and its standard error."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    panel = figure.subplots()
    for name, of_agents in returns.items():
        smooth = of_agents.unfold(1, 10, 1).mean(2)  # (agents, episodes)
        mean, error = smooth.mean(0), smooth.std(0, correction=0) / len(smooth) ** 0.5
        episodes = range(10, 10 + len(mean))
        panel.plot(episodes, mean, label=name)
        panel.fill_between(episodes, mean - error, mean + error, alpha=0.2)
    panel.set(xlabel="episode", ylabel="return, mean of 10 episodes", title=f"REINFORCE on {environment}")
    panel.legend(title=f"mean of {len(of_agents)}, ± its standard error")
    panel.grid(alpha=0.3)
    figure.savefig(path)
    return path


def option_parser() -> argparse.ArgumentParser:
    # One thread: a step of the environment is far too little work to share.
    parser = script_parser(__doc__, max_epochs=6, batch_size=1, threads=1)
    parser.add_argument("--env", default="CartPole-v1", help="the environment")
    parser.add_argument("--agents", type=number(int, least=1), default=5, help="how many of each kind")
    parser.add_argument("--discount", type=number(float, least=0), default=0.99, help="of a reward one action later")
    parser.add_argument("--width", type=number(int, least=1), default=32, help="of the networks")
    parser.add_argument("--lr", type=number(float, least=0), default=1e-2, help="the learning rate")
    return parser


if __name__ == "__main__":
    run_script(main)
