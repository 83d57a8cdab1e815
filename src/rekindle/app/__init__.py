# SPDX-License-Identifier: Apache-2.0
"""A page on this machine: click a place of your own image, see what a model finds alike. `rekindle app`; needs Gradio."""
