"""Reinforcement learning from a judge: prompts, rollouts, rewards, advantages, updates."""
