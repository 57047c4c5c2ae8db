export { type DumpSink, receiveDump } from './dump-receiver.ts';
export {
  type DemandListener,
  LazyPager,
  type PagerOptions,
  type PagerStatus,
  reconnectPager,
  startPager,
} from './pager.ts';
export { firstTouched } from './first-touched.ts';
export { lazyContents, materialise, type PageSource } from './pagemap.ts';
export { closePageServer } from './protocol.ts';
