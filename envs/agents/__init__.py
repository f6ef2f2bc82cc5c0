"""Agents of others at work: programs that ask the policy by an API, scored on what they leave behind"""
