"""From a model's text to events: reasoning and tool calls, as each family of models writes them."""
