"""Desired objects as plain manifests, one module per owner. Pure: the same input gives the same manifest."""
