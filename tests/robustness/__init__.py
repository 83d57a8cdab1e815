# SPDX-License-Identifier: Apache-2.0
"""Harnesses that try to break the program, each a command of its own and, in a shorter form, a test."""
