# SPDX-License-Identifier: Apache-2.0
"""Protocols that describe features without asking for a task: similarity, variance, kernel alignment."""
