/**
 * How Node is started for an agent. Buffers of pages are freed when a small collection finds them; with a young generation
 * of 1 MiB instead of 16 that is soon enough for them not to pile up to several times what is in use.
 */
export const AGENT_NODE_FLAGS = ['--disable-warning=ExperimentalWarning', '--max-semi-space-size=1'] as const;
