# SPDX-License-Identifier: Apache-2.0
"""Gradio app on this machine: click a place of your own image, see what a model finds alike. `rekindle app`."""
