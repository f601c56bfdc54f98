"""Tests of means: which genes differ in their mean between two groups of cells."""
