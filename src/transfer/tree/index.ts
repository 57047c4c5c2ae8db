/** Moving a directory tree in passes; docs/files.md says what moves and how. */
export { type DigestOptions, digestTree, type TreeDigest } from './digest.ts';
export { sharedWritableMappings } from './mappings.ts';
export { type ReceiveOptions, type ReceiveResult, receiveTree } from './receive.ts';
export { type ScanOptions, scanTree } from './scan.ts';
export { type SendOptions, type SendResult, sendTree, type TreeLocation, type TreeSending } from './send.ts';
export { type ServeOptions, serveTrees } from './session-receiver.ts';
export {
  type FinalOptions,
  type NamedTree,
  type RoundOptions,
  type TreeRound,
  TreesSender,
} from './session-sender.ts';
export type { Snapshot } from './snapshot.ts';
