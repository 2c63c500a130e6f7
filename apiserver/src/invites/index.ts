export { createInvites, type Invites, type RedeemRequest } from './invites.ts';
