"""The judge in the loop: rewards for RL trainers, sampling, and reinforcement learning."""
