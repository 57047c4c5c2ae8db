/** A container as its OCI runtime knows it, beneath whatever engine manages it. */
export interface RuntimeContainer {
  /** The runtime's `--root`. */
  root: string;
  id: string;
  /**
   * The runtime makes its network namespace, and a hook of the engine furnishes it: CRIU carries sockets, and leaves
   * interfaces, addresses and rules to the hook (CRIU's `--empty-ns net`).
   */
  hookedNetwork?: boolean;
  /** It is one of several that talk over the loopback interface: CRIU carries connections, and who dumps closes the others. */
  localConnections?: boolean;
}
