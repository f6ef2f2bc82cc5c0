"""The policy behind the APIs that agents speak: OpenAI's and Anthropic's, token-exact"""
